// SPDX-License-Identifier: Apache-2.0
//
// A file read through a program: a decompressor between the file and who reads the channel.
//
// The program is started as exec:'s are (exec_child.hpp), with the file as its standard input, so the bytes reach it
// without passing through us. Its end belongs to the content: a decompressor knows only at the end that the file was
// whole, so the channel's end is an error when the program ended badly.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/channel.hpp"
#include "transports/exec_child.hpp"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::transports {

// The program's path, by PATH. Error: "gzip is needed to read this file, but it is not installed".
Result<std::string> find_program(std::string_view name);

// `program` (a name) with its arguments, its input the open file from its position on.
Result<std::unique_ptr<ExecChild>> start_filter(const std::vector<std::string>& program, UniqueFd input);

// Read only; is_file() as the bytes come from one. Owner and thread: its reader's. Ending it early ends the program.
std::unique_ptr<Channel> make_filter_channel(std::unique_ptr<ExecChild> child, StopSource& stop,
                                             std::string_view program, std::string_view description);

}  // namespace migrationd::transports
