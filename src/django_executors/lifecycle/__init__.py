"""One unit of work and what it holds: the only part of the package that touches django.db.

Importing it puts the hook in place.
"""

from . import hook as hook
