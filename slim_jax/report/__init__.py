"""The page of a run or a study: DIR/report/index.html, with its figures beside it.

How the data flow, from the files of a run to the page:

  read, architecture, measure   what the files hold, checked; the networks; their speed
  figures (and display.plot)    matplotlib figures of it
  gallery, svg                  the figures as SVG: a file of each, and a part of the page
  run_page, study_page          the sections of the page, as plain data (`blocks`)
  page                          renders `templates/` with the sections and writes the files

configs/figures/ holds two figures of configs/digits.py for the README, copied from its page:

  python -m slim_jax.main --config=configs/digits.py --workdir=runs/digits
  cp runs/digits/report/widths.svg configs/figures/digits-widths.svg
  cp runs/digits/report/scales.svg configs/figures/digits-scales.svg
"""
