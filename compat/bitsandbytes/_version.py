"""The version of the public package whose names these are, and a mark that says who stands in its place."""

__version__ = "0.50.2+bnb.core"
