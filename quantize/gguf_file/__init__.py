"""The container that llama.cpp keeps models and importance matrices in, and what it calls their tensors."""
