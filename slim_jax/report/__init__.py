"""The page of a run or a study: DIR/report/index.html, and its figures beside it."""
