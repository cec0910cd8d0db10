"""What several studies share: sentences dealt to clients, frozen layers computed once."""
