"""Protobuf definitions and the code generated from them; only `rustray.rpc` imports it."""
