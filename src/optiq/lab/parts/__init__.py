"""What pages are made of: elements, boxes and pictures that more than one page uses."""
