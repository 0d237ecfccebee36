"""`python -m pyllm` is `pyllm`."""

from pyllm.cli import main

main()
