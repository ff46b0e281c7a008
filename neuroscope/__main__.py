"""`python -m neuroscope` is the console script."""

from neuroscope.cli import main

if __name__ == "__main__":
    main()
