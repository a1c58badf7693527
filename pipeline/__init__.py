"""What joins DVC, papermill and the book: parameters, notebook runner, claims, figures."""
