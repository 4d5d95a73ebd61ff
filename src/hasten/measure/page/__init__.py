"""What an HTML report is made of: the page's template, and uPlot, which draws its plots."""

__all__: list[str] = []
