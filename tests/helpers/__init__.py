"""What tests share: networks, laws that they are held to, programs, commands."""
