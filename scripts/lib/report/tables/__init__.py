"""The generated parts of the pages, one file for each kind of study."""
