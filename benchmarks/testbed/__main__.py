"""`python -m benchmarks.testbed`."""

from benchmarks.testbed.commands import main

if __name__ == "__main__":
    main()
