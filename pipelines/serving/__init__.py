"""`polymodal serve`: trained networks over HTTP, in the shapes of OpenAI's API.

`served` is a loaded model and what it can do; `engine` runs waiting prompts together in one thread; `fields` reads requests, `answers`
shapes what goes back; `app` has the routes and guards them; `server` listens until it is told to stop.
May import: base, model, inference.
"""
