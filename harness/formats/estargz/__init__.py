"""This package reads and writes eStargz: the table of contents and the layers it stands in."""
