"""Generated code of the package `rustray.v1`."""
