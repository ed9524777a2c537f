"""The MTP gradients' own norm, and their clipping apart from the policy's."""
