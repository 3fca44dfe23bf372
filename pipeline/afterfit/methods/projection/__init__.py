"""Draws in the kernel of protected rows: the rows, three ways to project, the certificate, and the scale."""
