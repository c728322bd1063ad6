from rnncls.cli import main

main()
