"""Generated code of the package `rustray.*`."""
