"""`python -m repfuse`."""

from repfuse.cli import main

main(prog_name="repfuse")
