"""eStargz: the table of contents, its reader and writer."""
