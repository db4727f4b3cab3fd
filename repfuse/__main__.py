"""`python -m repfuse`."""

from repfuse.commandline.cli import main

main(prog_name="repfuse")
