"""The page at ``/``: what an operator sees and does, as a small application in the browser.

It is written as plain ES modules over the JSON API, without a build step. Rendered by the server, each of its parts
would have needed a second set of routes beside those of the API, with their own checks of who may do what; this way
there is one set, and the page can do nothing that a client could not. What it needs of the server beyond the API is in
``routes.py``: its files, and sign-in.

``static/`` has the files. ``app.js`` is where to begin: it has the list of views, shows the one that the address names
and refreshes it. A view, ``views/NOUN.js``, loads its data from the API and makes elements of them, anew each time;
``dom.js`` changes what is on screen to be like them, so that focus, selection and scroll stay. Everything that comes
from the server becomes text, never markup: the page's policy refuses the functions that parse any.
"""
