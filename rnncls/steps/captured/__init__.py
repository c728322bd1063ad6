"""Steps captured as CUDA graphs, of one run (`engine`) or of several in one (`stack`)."""
