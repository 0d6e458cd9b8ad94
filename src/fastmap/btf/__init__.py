"""BTF, the kernel's description of types: made from numpy's dtypes, and read as them."""

from fastmap.btf.encoder import Builder, Kind, encode
from fastmap.btf.layout import Bitfield, Btf, Layout
from fastmap.btf.parse import Member, Variable

__all__ = ["Bitfield", "Btf", "Builder", "Kind", "Layout", "Member", "Variable", "encode"]
