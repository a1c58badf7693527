"""The link between DVC, papermill and the book: parameters, notebook runner, claims, figures."""
