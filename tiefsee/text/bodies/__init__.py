"""Request bodies of the three protocols to one `Conversation`; pure functions of parsed JSON.

What a body says about sampling is not read here. Unknown fields are tolerated, as clients and routers add
their own; what a model cannot be given (images, files, tools that run elsewhere) is refused and never fetched.
"""

from tiefsee.text.bodies.chat import read_chat
from tiefsee.text.bodies.messages import read_messages
from tiefsee.text.bodies.responses import read_responses

__all__ = ["read_chat", "read_messages", "read_responses"]
