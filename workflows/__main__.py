"""`python -m workflows` is the command `oneflow`, where its script is not on the PATH."""

from workflows.cli import main

if __name__ == "__main__":
    main()
