"""What the contract test must not do: saw off the branch that it sits on."""

import os
import uuid

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """Ids are learnt from lists. With its own token ended, every answer would be a 401, which is in the document."""
    ids = case.path_parameters or {}
    if case.method == "DELETE" and ids.get("token") == os.environ["OWN_TOKEN_ID"]:
        ids["token"] = str(uuid.UUID(int=7))
