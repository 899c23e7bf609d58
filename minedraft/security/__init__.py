"""Who may call, and how both ends prove who they are: secret files, tokens, TLS, a private CA. It opens no connection.

May import: values, places.
"""
