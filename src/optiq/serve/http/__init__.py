"""The server's HTTP side: translation between protocols and a gateway. No MLX, no model."""
