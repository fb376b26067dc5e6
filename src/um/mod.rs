//! Unified-messaging flows: menus, prompts. No database, no sockets.
