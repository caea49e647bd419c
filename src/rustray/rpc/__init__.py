"""The wire: the only importer of grpc and of the generated protobuf code."""
