"""Sans-IO WebSocket and HTTP, and what drives them over anyio."""
