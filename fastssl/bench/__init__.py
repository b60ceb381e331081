"""What limits this machine, in numbers: `fastssl.bench.load` measures loading, `fastssl.bench.pack` packing."""
