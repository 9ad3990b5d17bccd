"""What Python raises on a zip archive, or the .npy files in it, that is damaged or says something impossible."""

import lzma
import struct
import zipfile
import zlib

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # zipfile's answer to a compression method that it does not know
    RuntimeError,  # and to an encrypted member
    ValueError,
    OverflowError,
)
