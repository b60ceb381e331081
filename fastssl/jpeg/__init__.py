"""Decoding of JPEGs as fastssl packs them, in compiled code: libjpeg-turbo's pixels in three quarters of its time.

That is baseline with colours at half the resolution (4:2:0), without restarts. Whatever is unusual about a stream, in
its header or a single bit of its scan, makes `decode_windows` leave it to libjpeg-turbo, so that is the only one
that ever tells what is wrong with a JPEG.
"""

from fastssl.jpeg.decode import begin_and_end_alike, decode_image, decode_windows

__all__ = ["begin_and_end_alike", "decode_image", "decode_windows"]
