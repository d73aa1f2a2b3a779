"""The page of a server, under `/ui`: base model and adapter side by side, and the tokens that are edited.

The page is the files of `static/`: plain HTML, CSS and JavaScript, which load nothing from elsewhere and are made by no
build step.  It talks to the server's own API from the browser, with the key that its visitor types, so that it may do
what any client may.  `marks` says what to show of a prompt; `routes` puts both on an app.

Must not know: how a server answers.
"""

from .routes import PATH, attach_page

__all__ = ["PATH", "attach_page"]
