from minedraft.cli.chat_input import is_command, split_paragraphs


def test_a_pipe_gives_a_message_for_each_paragraph_and_command() -> None:
    lines = ["one\n", "  two \n", "\n", " \n", "three\n", "/undo\n", "/etc\n", "\n", "/quit \n", "last"]
    assert list(split_paragraphs(lines)) == ["one\n  two ", "three", "/undo", "/etc", "/quit", "last"]


def test_a_command_is_a_slash_and_a_word_and_nothing_else() -> None:
    assert is_command("/new")
    assert is_command("/nothing")
    for text in ("/usr/bin", " /new", "/new topic", "/", "new", "/new\nline"):
        assert not is_command(text)
