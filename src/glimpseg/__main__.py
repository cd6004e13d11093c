"""`python -m glimpseg` is the command line."""

from glimpseg.cli import main

if __name__ == "__main__":
    main()
