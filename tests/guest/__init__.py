"""The guest harness: Debian's kernels in an emulator, with this project's tests inside.

``python -m tests.guest --help``, from the root of the repository, tells what it can do. Only the
standard library is used: the harness runs before anything is built.
"""
