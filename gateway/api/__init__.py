"""The REST API: one module a resource. Two published vocabularies (product/connection, meter/customer), one model.

`routes.routes(context)` gives every route, `routes.middlewares()` what they need around them.
"""
