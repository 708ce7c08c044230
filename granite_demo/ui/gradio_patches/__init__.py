"""Everything that reaches into private parts of Gradio 6.31."""
