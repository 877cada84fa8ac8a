"""Frames, channels, retries: the only place that knows bytes."""

import os

# gRPC reads this when it is first imported. Its own fork handlers crash the child now and then
# while calls are under way; without them a forked child (a DataLoader's) is safe as long as it
# makes no call, and a client used there is refused.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
