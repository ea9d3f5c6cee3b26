"""The laboratory: experiments that show how attention captures long-range dependency."""
