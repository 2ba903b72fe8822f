"""Reads the headers with somebody else's C parser, and calls the library through what it made of
them: foreign.py INCLUDE LIBRARY"""

import subprocess
import sys

from cffi import FFI

include, library = sys.argv[1:]
source = "#include <stdint.h>\n#include <stddef.h>\n@here@\n#include <gpulet.h>\n"
flags = ["-E", "-P", "-I" + include, "-D__attribute__(x)=", "-D_Static_assert(...)="]
done = subprocess.run(
    ["cc", *flags, "-xc", "-"], input=source, capture_output=True, text=True, check=True
)
ours = done.stdout.split("@here@")[1]

ffi = FFI()
ffi.cdef("\n".join(line for line in ours.splitlines() if line.strip(" ;")))
lib = ffi.dlopen(library)
assert lib.gpulet_abi_version() == 1 << 16
assert ffi.string(lib.gpulet_status_text(43)) == b"the model's queue is full"
assert ffi.sizeof("struct gpulet_model_spec") == 2368
assert ffi.offsetof("struct gpulet_completion", "epoch") == 60
assert ffi.sizeof("struct gpulet_session_options") == 48

session = ffi.new("gpulet_session **")
options = ffi.new("struct gpulet_session_options *")
path = ffi.new("char[]", b"/nowhere/nobody.sock")
options.struct_bytes = ffi.sizeof("struct gpulet_session_options")
options.socket_path = path
assert lib.gpulet_session_open(options, session) == 20
assert b"nobody.sock" in ffi.string(lib.gpulet_error_text())
print("parsed")
