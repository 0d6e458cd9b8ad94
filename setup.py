"""Build the compiled core; everything else stands in pyproject.toml.

Switches, by environment: ``FASTMAP_SANITIZE=1`` (ASan and UBSan), ``FASTMAP_COVERAGE=1``
(line tracing in the .pyx files), ``FASTMAP_WERROR=1`` (warnings of our and of the generated C
are errors: what CI and the Makefile use; off for users, whose compiler may know new warnings).
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup


def switched(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


compile_args = ["-O3", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unused-parameter"]
link_args: list[str] = []
macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
directives = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "auto_pickle": False,
    "autotestdict": False,
    "embedsignature": False,
}
if switched("FASTMAP_WERROR"):
    compile_args.append("-Werror")
if switched("FASTMAP_SANITIZE"):
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    compile_args += ["-g", "-O1", "-fno-omit-frame-pointer", *sanitize]
    link_args += sanitize
if switched("FASTMAP_COVERAGE"):
    directives["linetrace"] = True
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]

core = Path("src/fastmap/_core")
include = Path("src/fastmap/include")
extensions = [
    Extension(
        ".".join(source.relative_to("src").with_suffix("").parts),
        [str(source)],
        include_dirs=[str(core), str(core / "system"), str(include), numpy.get_include()],
        depends=[str(header) for header in (*core.rglob("*.h"), *include.glob("*.h"))],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for source in sorted(core.rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["src"],
        compiler_directives=directives,
        nthreads=os.cpu_count() or 1,
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
