"""What carries steps between server and devices; alone turns fields into text."""

from flwr_slfac.transport.messages import MessageLink
from flwr_slfac.transport.records import RecordState, as_record

__all__ = ["MessageLink", "RecordState", "as_record"]
