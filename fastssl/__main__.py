"""`python -m fastssl` is the `fastssl` command."""

import sys


def main() -> None:
    """Entry point: loads the commands, and tells of what stands in the way of that."""
    try:
        from fastssl.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ImportError, MemoryError, SystemError) as error:
        sys.stderr.write(f"error: fastssl cannot be loaded: {error}\n  hint: see whether its files can be read\n")
        sys.exit(4)
    run()


if __name__ == "__main__":
    main()
