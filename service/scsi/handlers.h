#pragma once
// The functions behind the command table, by the file that has them. See command.h for what prepare and execute are.

#include "scsi/lun_channel.h"
#include "scsi/task.h"

namespace pollux::scsi {

// inquiry.cpp
void inquiry(LunChannel& channel, Task& task);
// capacity.cpp
void read_capacity_10(LunChannel& channel, Task& task);
void read_capacity_16(LunChannel& channel, Task& task);
// unit.cpp
void test_unit_ready(LunChannel& channel, Task& task);
void request_sense(LunChannel& channel, Task& task);
void start_stop_unit(LunChannel& channel, Task& task);
void prevent_allow(LunChannel& channel, Task& task);
void log_sense(LunChannel& channel, Task& task);
void read_defect_data(LunChannel& channel, Task& task);
// target.cpp
void report_luns(LunChannel& channel, Task& task);
// mode.cpp
void mode_sense(LunChannel& channel, Task& task);
void mode_select(LunChannel& channel, Task& task);
// read_write.cpp
bool prepare_read(LunChannel& channel, Task& task);
bool prepare_write(LunChannel& channel, Task& task);
bool prepare_range(LunChannel& channel, Task& task);
void read(LunChannel& channel, Task& task);
void write(LunChannel& channel, Task& task);
void synchronize_cache(LunChannel& channel, Task& task);
void pre_fetch(LunChannel& channel, Task& task);
// verify.cpp
bool prepare_verify(LunChannel& channel, Task& task);
bool prepare_write_and_verify(LunChannel& channel, Task& task);
void verify(LunChannel& channel, Task& task);
void write_and_verify(LunChannel& channel, Task& task);
// provisioning.cpp
bool prepare_unmap(LunChannel& channel, Task& task);
bool prepare_write_same(LunChannel& channel, Task& task);
void unmap(LunChannel& channel, Task& task);
void write_same(LunChannel& channel, Task& task);
void get_lba_status(LunChannel& channel, Task& task);
// compare.cpp
bool prepare_compare_and_write(LunChannel& channel, Task& task);
void compare_and_write(LunChannel& channel, Task& task);
void or_write(LunChannel& channel, Task& task);
// third_party_copy.cpp
bool prepare_extended_copy(LunChannel& channel, Task& task);
void extended_copy(LunChannel& channel, Task& task);
void receive_copy_status(LunChannel& channel, Task& task);
void receive_copy_parameters(LunChannel& channel, Task& task);
// persistent_reserve.cpp
void persistent_reserve_in(LunChannel& channel, Task& task);
void persistent_reserve_out(LunChannel& channel, Task& task);
void reserve_unit(LunChannel& channel, Task& task);
void release_unit(LunChannel& channel, Task& task);
// opcodes.cpp
void report_supported_opcodes(LunChannel& channel, Task& task);
void report_supported_task_functions(LunChannel& channel, Task& task);

}  // namespace pollux::scsi
