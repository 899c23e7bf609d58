"""What comes and goes over HTTP: bodies and what they ask, answers and their chunks, tools, the description of all.

May import: values, places, security, settings, client, process, text, http.
"""
